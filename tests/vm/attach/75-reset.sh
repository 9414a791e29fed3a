# The controller is reset and its namespaces are read again, and the disk works on.
attach "$ro_nqn" "$ro_line"
c=/dev/$(controller_of "$ro_nqn")
nvme reset "$c"
wait_for 20 live "$ro_nqn"
nvme ns-rescan "$c"
dd if="$dev" of=/dev/null bs=1M count=4 iflag=direct
