# Reads every attached disk whole and tells the checksums.
sums=$(for disk in $(disks); do sha256sum <"/dev/$disk"; done | cut -d ' ' -f 1 | sort)
tell sums "$(echo $sums)"
