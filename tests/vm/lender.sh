# Role lender: does what the other machine orders, a line a connection, with what comes behind the line as
# its input; answers with what that printed and how it ended.
cat >/tmp/order <<'END'
#!/usr/bin/bash
. /tests/cases/target.sh
read -r command
eval "$command" 2>&1
printf '\nexit %s\n' $?
END
chmod +x /tmp/order
hostname lender
nc -ll -p 7 -e /tmp/order
