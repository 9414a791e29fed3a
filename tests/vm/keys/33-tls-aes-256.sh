# A key of 48 bytes encrypts with AES-256.
begin
key=$(tls_key 2)
bring tls "$key"
let_in --tls-key tls $compat
insert 1 "$key" "$ro_nqn"
attach "$ro_nqn" "$connect -n $ro_nqn" --tls
encrypted_by TLS_AES_256_GCM_SHA384
whole
