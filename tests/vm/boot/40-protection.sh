# Tells of each attached disk whether it may be written: its size in bytes and ro or rw.
told=$(for disk in $(disks); do
    if [ "$(blockdev --getro "/dev/$disk")" = 1 ]; then access=ro; else access=rw; fi
    echo "$(blockdev --getsize64 "/dev/$disk"):$access"
done | sort -n)
tell protection "$(echo $told)"
