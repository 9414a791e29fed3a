# Role server: storagetm lends every disk of this machine, and its events go to the console.
# First it must run with nothing beside it: no library, no other file.
mkdir /tmp/alone
cp /tests/storagetm /tmp/alone
if chroot /tmp/alone /storagetm --version >/tmp/output 2>&1; then
    echo "vmtest ok runs-alone"
else
    sed 's/^/vmtest note /' /tmp/output
    echo "vmtest failed runs-alone"
fi
/tests/storagetm serve --json --all --open --listen 192.168.50.1:4420
echo "vmtest note storagetm ended with $?"
