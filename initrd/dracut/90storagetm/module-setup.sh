#!/bin/bash
# Storage target mode in an initrd that dracut makes: booted with rd.systemd.unit=storage-target-mode.target, it lends the
# disks instead of mounting them. Ask for it with: dracut --add storagetm

check() {
    require_binaries storagetm systemd-tmpfiles || return 1
    # Only when it is asked for.
    return 255
}

depends() {
    echo systemd systemd-journald systemd-tmpfiles systemd-udevd systemd-networkd
}

# The link to the other machine may be a cable that is not plugged in while the initrd is made.
installkernel() {
    hostonly='' instmods thunderbolt_net r8152 r8153_ecm ax88179_178a asix cdc_ether cdc_ncm
}

install() {
    local units="${systemdsystemunitdir:?}"
    inst_multiple storagetm systemctl
    inst_multiple \
        "$units"/storagetm.service \
        "$units"/storagetm-console.service \
        "$units"/storagetm-failure.service \
        "$units"/storagetm-hands-off.service \
        /usr/lib/storagetm/hands-off.conf
    inst_multiple -o \
        "$units/storage-target-mode.target.d/*.conf" \
        "$units/storagetm.service.d/*.conf" \
        "$units"/modprobe@.service \
        "$units"/systemd-modules-load.service
    # dracut puts rules where they win over those in /run; the initrd's own /etc is memory only.
    sed -n 's,^L+ /run/,L+ /etc/,p' "${dracutsysrootdir-}"/usr/lib/storagetm/hands-off.conf \
        >> "${initdir:?}"/usr/lib/storagetm/hands-off.conf
    # systemd brings the target since its version 255.
    if [[ -e "${dracutsysrootdir-}$units"/storage-target-mode.target ]]; then
        inst_simple "$units"/storage-target-mode.target
    else
        inst_simple /usr/share/storagetm/storage-target-mode.target "$units"/storage-target-mode.target
    fi
    if [[ ${hostonly-} ]]; then
        inst_multiple -H -o \
            "${systemdsystemconfdir:?}"/storagetm.service \
            "$systemdsystemconfdir/storage-target-mode.target.d/*.conf" \
            "$systemdsystemconfdir/storagetm.service.d/*.conf"
    fi
}
