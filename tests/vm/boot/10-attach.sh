# Types the line that the other machine shows, as it stands there, until so many disks are attached.
# $1: their number, a blank, the line.
count=${1%% *} line=${1#* }
complete() {
    [ "$(count_disks)" = "$count" ] || return 1
    for disk in $(disks); do
        [ -b "/dev/$disk" ] && [ "$(cat "/sys/block/$disk/size")" != 0 ] || return 1
    done
}
typed() {
    sh -c "$line" || true
    for _ in $(seq 10); do
        if complete; then return 0; fi
        usleep 50000
    done
    return 1
}
wait_for 60 typed
