# The target is killed amid verified I/O and comes back: the host waits, and no block is wrong.
login "$io_iqn"
verify "$dev" --size=8M --rate_iops=200,200 &
job=$!
sleep 3
ask crash
wait $job
