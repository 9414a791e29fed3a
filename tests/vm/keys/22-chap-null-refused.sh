# Whoever stands between can take away all groups, and gets nothing by it: without one nobody is let in, unless
# the owner says so.
begin
key=$(chap_key 1 32)
bring host "$key"
let_in --chap-key host
over 0
turned_away $connect -n "$ro_nqn" --dhchap-secret="$key"
on_target 'lend --allow-null-dh'
speak
attach "$ro_nqn" "$connect -n $ro_nqn" --dhchap-secret="$key"
whole
dmesg | grep 'DH group null'
