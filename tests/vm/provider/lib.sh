# What the tests of the storage provider share: those of attaching, and a running provider.
. /tests/cases/attaching-lib.sh

socket=/run/systemd/io.systemd.StorageProvider/storagetm
if ! storagectl providers --no-legend --no-pager 2>/dev/null | grep -q 'storagetm yes'; then
    storagetm provider >/tmp/provider.log 2>&1 </dev/null &
    wait_for 20 test -S "$socket"
fi

# volumes: what systemd lists, without colours and pages.
volumes() { storagectl volumes --no-pager --no-legend "$@"; }
