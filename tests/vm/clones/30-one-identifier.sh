# The control of the tests before this one: of two machines with the same machine identifier, Linux takes the clones for two paths
# to one disk. Nothing is written.
lends 1 1 /dev/vda
lends 2 1 /dev/vda
one=$(nqn_of 1 /dev/vda)
[ "$(nqn_of 2 /dev/vda)" = "$one" ]
attach_all 1
wait_for 60 has_disk "$one"
attach_all 2
two_paths() { [ "$(paths "$one")" = 2 ]; }
wait_for 30 two_paths
[ "$(count_disks)" = 1 ]
