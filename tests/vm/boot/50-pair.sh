# Types a line that lets this machine in, and the code when it is asked for; tells how that ended and what it
# says to type then. $1: the code, a colon, the line.
code=${1%%:*} line=${1#*:} status=0
sh -c "$line" <<<"$code" >/tmp/paired 2>&1 || status=$?
cat /tmp/paired >/dev/console
tell paired "$status;$(grep -o 'nvme connect.*' /tmp/paired | tr '\n' ';')"
