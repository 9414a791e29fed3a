# A key that nvme-cli puts into the keyring under an identity of version 1 encrypts the connection.
begin
key=$(tls_key 1)
bring tls "$key"
let_in --tls-key tls $compat
insert 1 "$key" "$ro_nqn"
attach "$ro_nqn" "$connect -n $ro_nqn" --tls
encrypted_by TLS_AES_128_GCM_SHA256
whole
