# A GPT written for blocks of 512 bytes is found.
attach "$ro_nqn" "$ro_line"
[ "$(cat "/sys/block/$disk/queue/logical_block_size")" = 512 ]
[ $(($(cat "/sys/block/$disk/size") * 512)) = "$ro_bytes" ]
wait_for 30 test -b "${dev}p1"
[ "$(cat "/sys/block/$disk/${disk}p1/size")" = 32768 ]
[ "$(blkid -p -o value -s PTTYPE "$dev")" = gpt ]
sfdisk --verify "$dev"
