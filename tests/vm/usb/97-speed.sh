# The same bytes by the kernel's own function and by storagetm, at two controllers at the same time, in
# short turns: the median of the ratios of neighbouring turns, with the quartiles, is in the log of the
# machine. A machine that is slower for a while is so for both. Five short turns if other tests are wanted, too. Emulated
# machines on a busy computer are no measure: the test fails only if even the upper quartile is far below.
turns=5 all=4M small=64k
if [ "$wanted" = speed ]; then turns=14 all=16M small=512k; fi
controller super
rmmod dummy_hcd
insmod /modules/dummy_hcd.ko is_super_speed=1 num=2
wait_for 10 [ -e /sys/class/udc/dummy_udc.1 ]
fill /tmp/a.img 48
cp /tmp/a.img /tmp/b.img
kernel_gadget /tmp/a.img
wait_for 60 has_usb 1
kernel=$(usb_disks)
serve --writable /tmp/b.img
wait_for 60 has_usb 2
ours=$(usb_disks | grep -v "^$kernel$")

# turn LOAD NUMBER OPTION...: a job of fio for each of the two, which of them is first changes.
turn() {
    local load=$1 number=$2 order="kernel ours"
    shift 2
    if [ $((number % 2)) = 0 ]; then order="ours kernel"; fi
    for side in $order; do
        printf '%s\n' "[$load.$side.$number]" stonewall "filename=/dev/${!side}" "rw=$load" "$@"
    done
}

{
    printf '%s\n' '[global]' direct=1 thread=1 size=48M
    for number in $(seq $turns); do
        for load in read write; do turn $load $number bs=1M io_size=$all; done
        turn randread $number bs=4k io_size=$small
    done
} >/tmp/turns
fio --minimal /tmp/turns >/tmp/fio
# Field 3 is the name of a job, fields 7 and 48 are the bandwidths of reads and writes in KiB/s.
awk -F ';' '{ print $3, $7 + $48 }' /tmp/fio >/tmp/figures
for load in read write randread; do
    awk -v load=$load '{ split($1, name, ".") }
        name[1] == load { speed[name[2], name[3]] = $2; if (name[3] > last) last = name[3] }
        END { for (i = 1; i <= last; i++) print int(100 * speed["ours", i] / speed["kernel", i]) }' \
        /tmp/figures | sort -n >/tmp/ratios
    at() { sed -n "$((($turns * $1 + 3) / 4))p" /tmp/ratios; }
    echo "vmtest note $load: $(at 2) % of the kernel's function, quartiles $(at 1) to $(at 3), $turns turns" \
        >/dev/console
    [ "$(at 3)" -ge 50 ]
done
no_kernel_gadget
stop
