# The target is killed amid verified I/O and comes back: the host waits, and no block is wrong.
attach "$io_nqn" "$io_line" --reconnect-delay=1 --ctrl-loss-tmo=60
verify "$dev" --size=8M --rate_iops=200,200 &
job=$!
sleep 3
ask crash
wait_for 30 not_live "$io_nqn"
wait_for 60 live "$io_nqn"
wait $job
dmesg | grep -i 'reconnect'
