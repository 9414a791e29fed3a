# What the tests of the storage provider share: those of attaching, and a running provider.
. /tests/cases/attaching-lib.sh

socket=/run/systemd/io.systemd.StorageProvider/storagetm
if ! storagectl providers --no-legend --no-pager 2>/dev/null | grep -q 'storagetm yes'; then
    storagetm provider >/tmp/provider.log 2>&1 </dev/null &
    wait_for 20 test -S "$socket"
fi

# A test that fails says what the provider and the other machine have to say.
ended() {
    local status=$?
    [ $status = 0 ] || cat /tmp/provider.log
    [ $status = 0 ] || on_target 'tail -n 4 /tmp/events; cat /tmp/complaints' || true
}

# volumes: what systemd lists, without colours and pages.
volumes() { storagectl volumes --no-pager --no-legend "$@"; }
