# R58: two disks of one machine with the same serial number, model and contents are two disks here.
lends 1 1 /dev/vdb /dev/vdc
on 1 '[ "$(cat /sys/block/vdb/serial)" = TWIN ] && [ "$(cat /sys/block/vdc/serial)" = TWIN ]'
one=$(nqn_of 1 /dev/vdb)
other=$(nqn_of 1 /dev/vdc)
attach_all 1
wait_for 60 has_disk "$one"
wait_for 60 has_disk "$other"
[ "$(count_disks)" = 2 ]
[ "$(paths "$one")" = 1 ]
[ "$(paths "$other")" = 1 ]
first=/dev/$(disk_of "$one")
second=/dev/$(disk_of "$other")
[ "$(hash_of "$first")" = "$before" ]
written "$first" 4
[ "$(hash_of "$second")" = "$before" ]
first_hash=$(hash_of "$first")
written "$second" 4
[ "$(hash_of "$first")" = "$first_hash" ]
tell twin_1 "$first_hash"
tell twin_2 "$(hash_of "$second")"
