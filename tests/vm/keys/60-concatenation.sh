# A host that proves who it is by DH-HMAC-CHAP and asks for it goes on encrypted.
begin
key=$(chap_key 1 32)
bring host "$key"
let_in --chap-key host
attach "$ro_nqn" "$connect -n $ro_nqn" --dhchap-secret="$key" --concat
encrypted_by TLS_AES_128_GCM_SHA256
whole
