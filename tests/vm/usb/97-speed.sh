# The same disk by the kernel's own function and by storagetm, in turns: the ratio of their medians, which
# is in the log of the machine. Three rounds if no other test is wanted, else a short one. Emulated machines are
# no measure: the test fails only far below.
rounds=1 all=12M small=1M
if [ "$wanted" = speed ]; then rounds=3 all=48M small=4M; fi
controller super
fill /tmp/a.img 48

# figure NAME OPTION...: bytes per second of fio on the disk, as a line of /tmp/NAME.
figure() {
    local name=$1
    shift
    fio --name=speed --filename=/dev/$(usb_disks) --direct=1 --minimal "$@" >/tmp/fio
    # Bandwidths of reads and writes in KiB/s.
    awk -F ';' '{ print $7 + $48 }' /tmp/fio >>/tmp/$name
}

# round NAME: the loads on the disk that is there.
round() {
    wait_for 60 has_usb 1
    figure $1.read --rw=read --bs=1M --size=$all
    figure $1.write --rw=write --bs=1M --size=$all
    figure $1.random --rw=randread --bs=4k --size=$all --io_size=$small
}

median() { sort -n $1 | sed -n $(((rounds + 1) / 2))p; }

for round in $(seq $rounds); do
    kernel_gadget /tmp/a.img
    round theirs
    no_kernel_gadget
    wait_for 20 no_usb
    serve --writable /tmp/a.img
    round ours
    stop
done
for load in read write random; do
    ours=$(median /tmp/ours.$load) theirs=$(median /tmp/theirs.$load)
    echo "vmtest note $load: $ours KiB/s, the kernel's function $theirs, ratio $((ours * 100 / theirs)) %" >/dev/console
    [ $((ours * 100 / theirs)) -ge 20 ]
done
