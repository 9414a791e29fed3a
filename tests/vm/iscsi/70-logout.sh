# After the logout there is no disk and no session.
login "$ro_iqn"
iscsiadm -m node -T "$ro_iqn" -u
wait_for 20 refused has_iscsi_disk "$ro_iqn"
refused ls /sys/class/iscsi_session/session*/targetname
