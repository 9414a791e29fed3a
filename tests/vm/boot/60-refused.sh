# Types a line that attaches disks, as it stands there and without what it says of keys: no disk comes.
# $1: the line.
refused sh -c "$1"
refused sh -c "${1/ --tls/}"
usleep 500000
[ "$(count_disks)" = 0 ]
