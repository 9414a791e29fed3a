# A host with a key of each kind must show both.
begin
tls=$(tls_key 1) chap=$(chap_key 2 48)
bring tls "$tls"
bring chap "$chap"
let_in --tls-key tls $compat --chap-key chap
insert 1 "$tls" "$ro_nqn"
refused $connect -n "$ro_nqn" --tls
refused $connect -n "$ro_nqn" --dhchap-secret="$chap"
refused $connect -n "$ro_nqn" --tls --dhchap-secret="$(chap_key 2 48)"
[ "$(count_disks)" = 0 ]
attach "$ro_nqn" "$connect -n $ro_nqn" --tls --dhchap-secret="$chap"
encrypted_by TLS_AES_128_GCM_SHA256
whole
