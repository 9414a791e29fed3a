# A host that is let in no longer is cut off within a second, and cannot come back until it is let in again.
begin
key=$(tls_key 1)
bring tls "$key"
let_in --tls-key tls $compat
insert 1 "$key" "$ro_nqn"
attach "$ro_nqn" "$connect -n $ro_nqn" --tls --reconnect-delay=1 --ctrl-loss-tmo=60
bring_back() { on_target "storagetm host add $host --name client --tls-key tls $compat"; }
milliseconds() { local up; read -r up _ </proc/uptime; echo "${up/./}0"; }
cut_off() {
    from_now
    on_target 'storagetm host remove client'
    start=$(milliseconds)
    wait_for 20 not_live "$ro_nqn"
    took=$(($(milliseconds) - start))
    echo "cut off after $took ms"
}
# A machine that is emulated may be slow to see it, though not each time.
for _ in 1 2 3; do
    cut_off
    [ "$took" -gt 1000 ] || break
    bring_back
    wait_for 20 live "$ro_nqn"
done
[ "$took" -le 1000 ]
event detached
usleep 4000000
not_live "$ro_nqn"
event refused
bring_back
wait_for 20 live "$ro_nqn"
whole
