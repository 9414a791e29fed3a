# A target that does not know the key by which it should prove who it is gets no host.
begin
key=$(chap_key 1 32)
bring host "$key"
bring other "$(chap_key 1 32)"
let_in --chap-key host --chap-controller-key other
refused $connect -n "$ro_nqn" --dhchap-secret="$key" --dhchap-ctrl-secret="$(chap_key 1 32)"
[ "$(count_disks)" = 0 ]
