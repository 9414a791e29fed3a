# Reservations by nvme-cli: the sequence of blktests nvme/054, then two hosts.
attach "$rw_nqn" "$rw_line"
eds=--eds
{ nvme resv-report --help 2>&1 || true; } | grep -- --eds >/dev/null || eds=--cdw11=1

# report DEVICE: generation, type and registrants in one line.
report() {
    nvme resv-report "$1" -n 1 $eds | grep -E '^ *(gen|rtype|regctl|cntlid|rcsts|rkey) *:' | tr -d ' ' | tr '\n' ' '
}

# reports DEVICE LINE: that is what is reported.
reports() {
    found=$(report "$1")
    [ "$found" = "$2" ] || { echo "expected $2, found $found"; return 1; }
}

one() { echo "gen:$1 rtype:$2 regctl:1 cntlid:ffff rcsts:$3 rkey:$4 "; }
reports "$dev" "gen:0 rtype:0 regctl:0 "
nvme resv-register "$dev" -n 1 --nrkey=4 --rrega=0
reports "$dev" "$(one 1 0 0 4)"
nvme resv-register "$dev" -n 1 --crkey=4 --nrkey=5 --rrega=2
reports "$dev" "$(one 2 0 0 5)"
nvme resv-register "$dev" -n 1 --crkey=5 --rrega=1
reports "$dev" "gen:3 rtype:0 regctl:0 "
nvme resv-register "$dev" -n 1 --nrkey=4 --rrega=0
nvme resv-acquire "$dev" -n 1 --crkey=4 --rtype=1 --racqa=0
reports "$dev" "$(one 4 1 1 4)"
nvme resv-acquire "$dev" -n 1 --crkey=4 --prkey=4 --rtype=2 --racqa=1
reports "$dev" "$(one 5 2 1 4)"
nvme resv-release "$dev" -n 1 --crkey=4 --rtype=2 --rrela=0
reports "$dev" "$(one 5 0 0 4)"
nvme resv-acquire "$dev" -n 1 --crkey=4 --rtype=1 --racqa=0
reports "$dev" "$(one 5 1 1 4)"

# Both hosts are paths of one disk here, so each is spoken to through its controller.
a=/dev/$(controller_of "$rw_nqn")
id=22222222-2222-4222-8222-222222222222
# By the kernel's own interface: nvme-cli 2.3 takes the connection of another host for a duplicate.
echo "transport=tcp,traddr=$address,trsvcid=$port,nqn=$rw_nqn,hostnqn=nqn.2014-08.org.nvmexpress:uuid:$id,hostid=$id" \
    >/dev/nvme-fabrics
second() {
    for path in /sys/class/nvme/nvme*; do
        [ "/dev/${path##*/}" = "$a" ] || [ "$(cat "$path/subsysnqn")" != "$rw_nqn" ] || b=/dev/${path##*/}
    done
    [ -c "${b:-/none}" ]
}
wait_for 30 second
second
dd if=/dev/urandom of=/tmp/block bs=4k count=1
blocks=$((4096 / $(cat "/sys/block/$disk/queue/logical_block_size") - 1))
put() { nvme io-passthru "$1" -n 1 --opcode=1 --cdw12=$blocks --data-len=4096 -w -i /tmp/block; }
put "$a"
refused put "$b"
refused nvme resv-acquire "$b" -n 1 --crkey=6 --rtype=1 --racqa=0
nvme resv-register "$b" -n 1 --nrkey=6 --rrega=0
refused put "$b"
nvme resv-acquire "$b" -n 1 --crkey=6 --prkey=4 --rtype=1 --racqa=2
put "$b"
refused put "$a"
reports "$b" "$(one 7 1 1 6)"
# One notification, of a registration that was preempted, in namespace 1.
nvme get-log "$a" --log-id=0x80 --log-len=64 -b | od -An -tx1 -N 16 | grep -Fx ' 01 00 00 00 00 00 00 00 01 00 00 00 01 00 00 00'
nvme resv-release "$b" -n 1 --crkey=6 --rrela=1
put "$a"
