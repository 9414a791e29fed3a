# R58: clones of one disk that two machines lend are two disks here, not two paths to one. What is written to one does not get
# to the other, also not while the machine of the first is gone.
lends 1 1 /dev/vda
lends 2 2 /dev/vda
one=$(nqn_of 1 /dev/vda)
other=$(nqn_of 2 /dev/vda)
attach_all 1
attach_all 2
wait_for 60 has_disk "$one"
wait_for 60 has_disk "$other"
[ "$(count_disks)" = 2 ]
[ "$(paths "$one")" = 1 ]
[ "$(paths "$other")" = 1 ]
first=/dev/$(disk_of "$one")
second=/dev/$(disk_of "$other")
[ "$(cat "/sys/block/${first##*/}/wwid")" != "$(cat "/sys/block/${second##*/}/wwid")" ]
[ "$(blkid -p -o value -s PTUUID "$first")" = "$(blkid -p -o value -s PTUUID "$second")" ]
[ "$(hash_of "$first")" = "$before" ]
[ "$(hash_of "$second")" = "$before" ]

written "$first" 4
[ "$(hash_of "$first")" != "$before" ]
[ "$(hash_of "$second")" = "$before" ]

# The write to the first waits for its machine, and does not take the way to the other one.
on 1 end
written "$first" 6 &
sleep 3
[ "$(hash_of "$second")" = "$before" ]
lends 1 1 /dev/vda
wait $!
[ "$(hash_of "$second")" = "$before" ]

first_hash=$(hash_of "$first")
written "$second" 4
[ "$(hash_of "$first")" = "$first_hash" ]
tell first "$first_hash"
tell second "$(hash_of "$second")"
