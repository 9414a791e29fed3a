# A host that is let in no longer is cut off within a second, and cannot come back until it is let in again.
begin
key=$(tls_key 1)
bring tls "$key"
let_in --tls-key tls $compat
insert 1 "$key" "$ro_nqn"
attach "$ro_nqn" "$connect -n $ro_nqn" --tls --reconnect-delay=1 --ctrl-loss-tmo=60
from_now
on_target 'storagetm host remove client'
milliseconds() { local up; read -r up _ </proc/uptime; echo "${up/./}0"; }
start=$(milliseconds)
wait_for 5 not_live "$ro_nqn"
echo "cut off after $(($(milliseconds) - start)) ms"
[ $(($(milliseconds) - start)) -le 1000 ]
event detached
usleep 4000000
not_live "$ro_nqn"
event refused
bring_back() { on_target "storagetm host add $host --name client --tls-key tls $compat"; }
bring_back
wait_for 20 live "$ro_nqn"
whole
