# Another key under the same name, and a key under another name, let nobody in.
begin
bring tls "$(tls_key 1)"
let_in --tls-key tls $compat
for version in 0 1; do
    keyctl clear "$ring"
    insert "$version" "$(tls_key 1)" "$ro_nqn"
    turned_away $connect -n "$ro_nqn" --tls
done
