# Model, serial number and identifiers reach the host, and stay the same.
attach "$ro_nqn" "$ro_line"
controller=/sys/class/nvme/$(controller_of "$ro_nqn")
[ "$(cat "$controller/model" | sed 's/ *$//')" = "$ro_model" ]
[ "$(cat "$controller/serial" | sed 's/ *$//')" = "$ro_serial" ]
[ -n "$(cat "$controller/firmware_rev" | tr -d ' ')" ]
first=$(cat "/sys/block/$disk/wwid")
echo "$first"
case $first in uuid.* | eui.* | nvme.*) ;; *) false ;; esac
nvme disconnect -n "$ro_nqn"
attach "$ro_nqn" "$ro_line"
[ "$(cat "/sys/block/$disk/wwid")" = "$first" ]
