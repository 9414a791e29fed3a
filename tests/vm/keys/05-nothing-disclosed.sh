# Who has no key learns nothing: neither in the clear, nor with a key that nobody knows, nor by sending what
# makes no sense.
begin
heard() { "$@" >>/tmp/heard 2>&1; }
turned_away heard nvme discover -t tcp -a "$address" -s "$port"
turned_away heard $connect -n "$discovery"
turned_away heard $connect -n "$ro_nqn"
key=$(tls_key 1)
insert 1 "$key" "$ro_nqn" "$discovery"
turned_away heard $connect -n "$ro_nqn" --tls
turned_away heard nvme discover -t tcp -a "$address" -s "$port" --tls
# What NVMe/TCP, TLS and HTTP begin with, and silence.
say() { { printf "$1"; sleep 2; } | timeout 5 nc "$address" "$port" >>/tmp/heard || true; }
say "\x00\x00\x80\x00\x80\x00\x00\x00$(printf '\\x00%.0s' $(seq 120))"
say '\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00'
say 'GET / HTTP/1.1\r\n\r\n'
say ''
for secret in RO1 RW1 "$ro_nqn" "$rw_nqn" lender vda vdb storagetm; do
    if grep -a -i -F "$secret" /tmp/heard; then
        echo "was told: $secret"
        false
    fi
done
