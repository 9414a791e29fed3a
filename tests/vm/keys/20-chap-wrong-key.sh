# A key that is well formed and wrong lets nobody in, nor does none.
begin
bring host "$(chap_key 1 32)"
let_in --chap-key host
turned_away $connect -n "$ro_nqn" --dhchap-secret="$(chap_key 1 32)"
refused $connect -n "$ro_nqn"
[ "$(count_disks)" = 0 ]
