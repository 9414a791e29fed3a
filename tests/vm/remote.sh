# Role remote: runs the script that the host names on the serial line, with what stands behind the
# name as its argument, and says whether it went well.
exec 3</dev/ttyS0
stty -echo <&3
echo "vmtest ok boot"
while read -r name argument <&3; do
    if timeout 100 bash -eu -o pipefail -c '. /tests/lib.sh; . "$0"' \
        /tests/cases/*-"$name".sh "$argument" >/tmp/output 2>&1; then
        echo "vmtest ok $name"
    else
        { tail -n 40 /tmp/output; dmesg | tail -n 25; } | sed 's/^/vmtest note /'
        echo "vmtest failed $name"
    fi
done
