# The keys that storagetm makes and writes for a host are imported by nvme-cli as they are.
begin
on_target "storagetm host add $host --name client"
on_target "storagetm key export client --for-host client --disk $ro_nqn --disk $rw_nqn" >/tmp/keys
noticed
nvme tls-key --import --keyfile=/tmp/keys
attach "$ro_nqn" "$connect -n $ro_nqn" --tls
encrypted_by TLS_AES_128_GCM_SHA256
whole
