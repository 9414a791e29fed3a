# Role blktests: runs the named tests of blktests, and reports the result of each.
target=/tests/cases/target.sh
ip addr add 127.0.0.1/8 dev lo
ip link set lo up
ln -s /proc/self/fd /dev/fd
mount -t debugfs debug /sys/kernel/debug
mount -t configfs config /sys/kernel/config
# blktests looks for its own target's settings here. This file is all it wants to see of reservations.
mount -t tmpfs nvmet /sys/kernel/config/nvmet
$target names
nqn=$($target config --show-subsysnqn)
mkdir -p "/sys/kernel/config/nvmet/subsystems/$nqn/namespaces/1" /sys/kernel/config/nvmet/ports /sys/kernel/config/nvmet/hosts
touch "/sys/kernel/config/nvmet/subsystems/$nqn/namespaces/1/resv_enable"

# The kernel's configuration is not compressed.
ln -s grep /usr/bin/zgrep
cd /blktests || exit 1
export NVME_TARGET_CONTROL=$target NVME_IMG_SIZE=352M TIMEOUT=20 OUTPUT=/tmp/results
for name in $tests; do
    start=$SECONDS
    timeout -k 5 150 ./check "nvme/$name" >/tmp/printed 2>&1
    cat /tmp/printed
    # Whatever it left must not be in the way of the next.
    nvme disconnect-all >/dev/null 2>&1
    $target cleanup
    status=$(sed -n 's/^status\t//p' /tmp/results/nodev*/nvme/"$name" 2>/dev/null | tail -n 1)
    echo "# nvme/$name: $((SECONDS - start)) s"
    echo "vmtest value $name=${status:-none}"
    cat "/tmp/results"/nodev*/nvme/"$name".out.bad 2>/dev/null | head -n 30
    rm -rf /tmp/results
done
