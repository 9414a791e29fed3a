# A machine that lends nothing any more, or is not to say so, is not found.
lent --open --listen 192.168.50.1
wait_for 40 found
on_target end
wait_for 20 refused found
lent --open --listen 192.168.50.1 --no-announce
refused found
