# Discovery names the three targets at the address that was asked.
iscsiadm -m discovery -t sendtargets -p "$portal" >/tmp/found
cat /tmp/found
[ "$(grep -c "^$portal,1 iqn" /tmp/found)" = 3 ]
for iqn in "$ro_iqn" "$rw_iqn" "$io_iqn"; do grep -q "^$portal,1 $iqn\$" /tmp/found; done
