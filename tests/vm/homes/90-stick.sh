# A disk that is a home and nothing else is lent like a file, and is the same disk to hosts.
on_target 'lend --homes=alice'
on_target 'cat /tmp/events' | grep -o '"name":"home-alice","nqn":"[^"]*"' >/tmp/file
on_target 'end; dd if=/home/alice.home of=/dev/vdb bs=1M conv=fsync; mv /home/alice.home /home/alice.old; lend --homes=alice'
on_target 'cat /tmp/events' | grep '"disk":"/dev/vdb"' | grep -o '"name":"home-alice","nqn":"[^"]*"' | cmp - /tmp/file
attach_home
wait_for 30 homectl activate alice
[ "$(cat /home/alice/answer)" = 'hello from the client' ]
wait_for 30 storagetm detach lender
