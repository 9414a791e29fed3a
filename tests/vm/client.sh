# Role client: runs the wanted tests of its scenario, each in a shell of its own that stops at the
# first command that fails, and reports each. What a test printed is told only if it failed.
for script in /tests/cases/*.sh; do
    name=${script##*/[0-9][0-9]-}
    name=${name%.sh}
    case " $wanted " in *" $name "*) ;; *) continue ;; esac
    dmesg -c >/dev/null
    if timeout 100 bash -eu -o pipefail -c '. /tests/lib.sh; . "$0"' "$script" >/tmp/output 2>&1; then
        echo "vmtest ok $name"
    else
        { tail -n 40 /tmp/output; dmesg | tail -n 25; } | sed 's/^/vmtest note /'
        echo "vmtest failed $name"
    fi
    # The tests of hot-plugging go on with what the one before has attached.
    [ "$scenario" = hotplug ] || nvme disconnect-all >/dev/null 2>&1
done
