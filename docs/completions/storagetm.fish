# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_storagetm_global_optspecs
    string join \n h/help V/version
end

function __fish_storagetm_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_storagetm_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_storagetm_using_subcommand
    set -l cmd (__fish_storagetm_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c storagetm -n "__fish_storagetm_needs_command" -s h -l help -d 'Print help'
complete -c storagetm -n "__fish_storagetm_needs_command" -s V -l version -d 'Print version'
complete -c storagetm -n "__fish_storagetm_needs_command" -f -a "serve" -d 'Lend disks until Ctrl-C'
complete -c storagetm -n "__fish_storagetm_needs_command" -f -a "copy" -d 'Copy a disk: from another machine, to one, or on this one'
complete -c storagetm -n "__fish_storagetm_needs_command" -f -a "list" -d 'List the disks of this machine, what is on them, and whether they may be lent'
complete -c storagetm -n "__fish_storagetm_needs_command" -f -a "boot" -d 'Be the first program of a machine that is booted only to lend its disks'
complete -c storagetm -n "__fish_storagetm_needs_command" -f -a "image" -d 'Make something that boots into target mode: an initramfs, an EFI program, or a USB stick'
complete -c storagetm -n "__fish_storagetm_needs_command" -f -a "key" -d 'Make, keep and hand over the keys by which other machines are let in'
complete -c storagetm -n "__fish_storagetm_needs_command" -f -a "host" -d 'Say which machines are let in, to which disks, and until when'
complete -c storagetm -n "__fish_storagetm_needs_command" -f -a "pair" -d 'Be let in by another machine that lends disks, by the code on its screen'
complete -c storagetm -n "__fish_storagetm_needs_command" -f -a "find" -d 'Look for machines that lend disks on the networks that this one is on'
complete -c storagetm -n "__fish_storagetm_needs_command" -f -a "attach" -d 'Have this machine\'s kernel attach disks that another one lends'
complete -c storagetm -n "__fish_storagetm_needs_command" -f -a "detach" -d 'Have this machine\'s kernel let go of disks that were attached'
complete -c storagetm -n "__fish_storagetm_needs_command" -f -a "hold" -d 'Keep what is on the terminal until a key is pressed'
complete -c storagetm -n "__fish_storagetm_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c storagetm -n "__fish_storagetm_using_subcommand serve" -l demo -d 'Lend a built-in disk held in memory, of 256M or as large as said: 64M, 1G' -r
complete -c storagetm -n "__fish_storagetm_using_subcommand serve" -l writable -d 'Lend DISK so that hosts can change it; may be repeated ("demo" for the built-in disk)' -r -F
complete -c storagetm -n "__fish_storagetm_using_subcommand serve" -l protocol -d 'Speak these protocols: nvme, nbd, or both with a comma between them' -r -f -a "nvme\t'NVMe/TCP, which Linux attaches by itself'
nbd\t'NBD, which qemu, libguestfs, nbdcopy and many others speak'"
complete -c storagetm -n "__fish_storagetm_using_subcommand serve" -l listen -d 'Listen there: 192.168.1.5, 127.0.0.1:4420, [fe80::1%eth0], nbd:[::]:10809, unix:/run/x.sock; may be repeated' -r
complete -c storagetm -n "__fish_storagetm_using_subcommand serve" -l keys -d 'Where the keys and the hosts that have them are kept' -r -F
complete -c storagetm -n "__fish_storagetm_using_subcommand serve" -l tls-certificates -d 'Let NBD clients come by TLS with certificates, too: DIR holds server-cert.pem, server-key.pem and ca-cert.pem' -r -F
complete -c storagetm -n "__fish_storagetm_using_subcommand serve" -l nqn -d 'Name disks BASE.NAME, where NAME is the last part of the path' -r
complete -c storagetm -n "__fish_storagetm_using_subcommand serve" -l format -d 'Lend files as they are, also what is packed (qcow2, VMDK, gzip and the like) and of which hosts could make nothing' -r -f -a "raw\t'The bytes of a disk'"
complete -c storagetm -n "__fish_storagetm_using_subcommand serve" -l io -d 'How to reach the disks and the network: by io_uring, by blocking calls, or the first that works' -r -f -a "auto\t'By io_uring where the kernel allows it'
uring\t'By io_uring, or not at all'
blocking\t'By blocking calls'"
complete -c storagetm -n "__fish_storagetm_using_subcommand serve" -l threads -d 'Threads that serve hosts; as many as there are processors if not given' -r
complete -c storagetm -n "__fish_storagetm_using_subcommand serve" -l all -d 'Lend every disk that is not in use, and follow disks as they come, go and change size'
complete -c storagetm -n "__fish_storagetm_using_subcommand serve" -l stdin -d 'Speak NBD with the one client at the other end of standard input, and end when it has gone'
complete -c storagetm -n "__fish_storagetm_using_subcommand serve" -l open -d 'Let in whoever comes, without a key, and encrypt nothing'
complete -c storagetm -n "__fish_storagetm_using_subcommand serve" -l pair -d 'Show a code by which other machines are let in (storagetm pair), also without a screen'
complete -c storagetm -n "__fish_storagetm_using_subcommand serve" -l allow-null-dh -d 'Accept DH-HMAC-CHAP without a Diffie-Hellman exchange, for hosts that can do no other'
complete -c storagetm -n "__fish_storagetm_using_subcommand serve" -l no-announce -d 'Do not tell the networks nearby that there are disks to be had here'
complete -c storagetm -n "__fish_storagetm_using_subcommand serve" -l allow-in-use -d 'Lend disks read-only even if this machine uses them'
complete -c storagetm -n "__fish_storagetm_using_subcommand serve" -l force -d 'Lend a disk writable even if what is on it cannot be read'
complete -c storagetm -n "__fish_storagetm_using_subcommand serve" -l digests -d 'Put header and data digests into the lines to be typed, against faulty networks'
complete -c storagetm -n "__fish_storagetm_using_subcommand serve" -l boot-settings -d 'Follow also what the machine was booted with: storagetm.disk=, storagetm.writable=, storagetm.protocol=, storagetm.listen=, storagetm.open, storagetm.pair= and storagetm.machine_id='
complete -c storagetm -n "__fish_storagetm_using_subcommand serve" -l json -d 'Write what happens as JSON, one event a line, instead of the screen'
complete -c storagetm -n "__fish_storagetm_using_subcommand serve" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c storagetm -n "__fish_storagetm_using_subcommand copy" -l map -d 'Keep in FILE how far the copy is, in the format of GNU ddrescue, and go on from there if FILE is there' -r -F
complete -c storagetm -n "__fish_storagetm_using_subcommand copy" -l retries -d 'How often bad sectors are tried again' -r
complete -c storagetm -n "__fish_storagetm_using_subcommand copy" -l connections -d 'Connections to each machine' -r
complete -c storagetm -n "__fish_storagetm_using_subcommand copy" -l rate -d 'Copy no faster than so many bytes a second: 500K, 20M' -r
complete -c storagetm -n "__fish_storagetm_using_subcommand copy" -l format -d 'Take SRC for the bytes of a disk, whatever it looks like' -r -f -a "raw\t'The bytes of a disk'"
complete -c storagetm -n "__fish_storagetm_using_subcommand copy" -l patience -d 'How long to try to reach a machine again that was lost, in seconds' -r
complete -c storagetm -n "__fish_storagetm_using_subcommand copy" -l key -d 'The key with which nvme://, nbd:// and nbds:// are secured, in a file: NVMeTLSkey-1:… or, for nvme://, DHHC-1:…' -r -F
complete -c storagetm -n "__fish_storagetm_using_subcommand copy" -l keys -d 'Where the keys of storagetm pair are kept' -r -F
complete -c storagetm -n "__fish_storagetm_using_subcommand copy" -l hostnqn -d 'The name under which this machine is let in, if not its usual one' -r
complete -c storagetm -n "__fish_storagetm_using_subcommand copy" -l verify -d 'Read the destination at the end and compare it with what was read from the source; this is the default'
complete -c storagetm -n "__fish_storagetm_using_subcommand copy" -l no-verify -d 'Do not read the destination at the end'
complete -c storagetm -n "__fish_storagetm_using_subcommand copy" -l allocated -d 'Copy only what file systems use; all else becomes zeros'
complete -c storagetm -n "__fish_storagetm_using_subcommand copy" -l files -d 'Say at the end which files have bad sectors (ext2, ext3, ext4, NTFS)'
complete -c storagetm -n "__fish_storagetm_using_subcommand copy" -l no-sparse -d 'Write zeros, too, where the destination could have holes'
complete -c storagetm -n "__fish_storagetm_using_subcommand copy" -l convert-sectors -d 'Write the partition table for the block size of DST, if SRC has another one'
complete -c storagetm -n "__fish_storagetm_using_subcommand copy" -l keep-sectors -d 'Copy byte for byte even if the partition table of SRC is for another block size than that of DST'
complete -c storagetm -n "__fish_storagetm_using_subcommand copy" -l fix-gpt -d 'Move the backup of a GUID partition table to the end of DST, if that is larger than SRC'
complete -c storagetm -n "__fish_storagetm_using_subcommand copy" -l force -d 'Overwrite the file DST, if it is there, without asking, or the disk DST if what is on it cannot be read'
complete -c storagetm -n "__fish_storagetm_using_subcommand copy" -l yes -d 'Overwrite the disk DST, here or on another machine, without asking'
complete -c storagetm -n "__fish_storagetm_using_subcommand copy" -l allow-in-use -d 'Copy SRC even if this machine uses it; what is read may be half-written'
complete -c storagetm -n "__fish_storagetm_using_subcommand copy" -l digests -d 'Use header and data digests with nvme://, against faulty networks'
complete -c storagetm -n "__fish_storagetm_using_subcommand copy" -l insecure -d 'Speak in the clear with a machine that accepts none of the keys that this machine has'
complete -c storagetm -n "__fish_storagetm_using_subcommand copy" -l json -d 'Write what happens as JSON, one event a line'
complete -c storagetm -n "__fish_storagetm_using_subcommand copy" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c storagetm -n "__fish_storagetm_using_subcommand list" -l json -d 'Write a JSON array, one object a disk'
complete -c storagetm -n "__fish_storagetm_using_subcommand list" -s h -l help -d 'Print help'
complete -c storagetm -n "__fish_storagetm_using_subcommand boot" -s h -l help -d 'Print help'
complete -c storagetm -n "__fish_storagetm_using_subcommand image" -l initramfs -d 'Write an initramfs, to be booted with the kernel by any boot loader' -r -F
complete -c storagetm -n "__fish_storagetm_using_subcommand image" -l uki -d 'Write an EFI program (a unified kernel image), which firmware and boot loaders start by itself' -r -F
complete -c storagetm -n "__fish_storagetm_using_subcommand image" -l disk -d 'Write a disk that EFI firmware boots from: an image file, or straight onto a USB stick' -r -F
complete -c storagetm -n "__fish_storagetm_using_subcommand image" -l for -d 'With drivers for any PC, or only for the hardware of this one' -r -f -a "this-machine\t'Only this one: smaller, and starts sooner'
generic\t'Any PC'"
complete -c storagetm -n "__fish_storagetm_using_subcommand image" -l kernel -d 'The kernel; the running one\'s if not given' -r -F
complete -c storagetm -n "__fish_storagetm_using_subcommand image" -l modules -d 'The folder of the kernel\'s modules; /lib/modules/VERSION if not given' -r -F
complete -c storagetm -n "__fish_storagetm_using_subcommand image" -l command-line -d 'The kernel command line, with what storagetm boot reads from it' -r
complete -c storagetm -n "__fish_storagetm_using_subcommand image" -l stub -d 'The start of the EFI program: linuxx64.efi.stub of systemd, found by itself where systemd-boot is installed' -r -F
complete -c storagetm -n "__fish_storagetm_using_subcommand image" -l firmware -d 'Where the drivers\' firmware is' -r -F
complete -c storagetm -n "__fish_storagetm_using_subcommand image" -l no-firmware -d 'Leave the drivers\' firmware out'
complete -c storagetm -n "__fish_storagetm_using_subcommand image" -l force -l overwrite -d 'Overwrite the file or disk, if it is there, without asking'
complete -c storagetm -n "__fish_storagetm_using_subcommand image" -l json -d 'Write what was made as one JSON line'
complete -c storagetm -n "__fish_storagetm_using_subcommand image" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c storagetm -n "__fish_storagetm_using_subcommand key; and not __fish_seen_subcommand_from generate import export list remove help" -l keys -d 'Where keys and hosts are kept' -r -F
complete -c storagetm -n "__fish_storagetm_using_subcommand key; and not __fish_seen_subcommand_from generate import export list remove help" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c storagetm -n "__fish_storagetm_using_subcommand key; and not __fish_seen_subcommand_from generate import export list remove help" -f -a "generate" -d 'Make a new key, and print it or keep it by a name'
complete -c storagetm -n "__fish_storagetm_using_subcommand key; and not __fish_seen_subcommand_from generate import export list remove help" -f -a "import" -d 'Keep a key that was made elsewhere; its text is read from standard input or a file'
complete -c storagetm -n "__fish_storagetm_using_subcommand key; and not __fish_seen_subcommand_from generate import export list remove help" -f -a "export" -d 'Write a key in the form in which keys are handed over, or in that which nvme-cli or NBD clients read'
complete -c storagetm -n "__fish_storagetm_using_subcommand key; and not __fish_seen_subcommand_from generate import export list remove help" -f -a "list" -d 'List the keys that are kept, and which hosts use them; never the keys themselves'
complete -c storagetm -n "__fish_storagetm_using_subcommand key; and not __fish_seen_subcommand_from generate import export list remove help" -f -a "remove" -d 'Remove a key that no host uses'
complete -c storagetm -n "__fish_storagetm_using_subcommand key; and not __fish_seen_subcommand_from generate import export list remove help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c storagetm -n "__fish_storagetm_using_subcommand key; and __fish_seen_subcommand_from generate" -l hash -d 'The hash by which each host\'s own key is made of it; it also sets how long the key is' -r -f -a "none\t'The key is used as it is'
sha256\t'SHA-256: a key of 32 bytes'
sha384\t'SHA-384: a key of 48 bytes'
sha512\t'SHA-512: a key of 64 bytes, for chap only'"
complete -c storagetm -n "__fish_storagetm_using_subcommand key; and __fish_seen_subcommand_from generate" -l name -d 'Keep it by this name, and print nothing secret' -r
complete -c storagetm -n "__fish_storagetm_using_subcommand key; and __fish_seen_subcommand_from generate" -l keys -d 'Where keys and hosts are kept' -r -F
complete -c storagetm -n "__fish_storagetm_using_subcommand key; and __fish_seen_subcommand_from generate" -l show -d 'Print it as well as keep it'
complete -c storagetm -n "__fish_storagetm_using_subcommand key; and __fish_seen_subcommand_from generate" -l replace -d 'Take the place of a key of that name; hosts that use it are cut off until they have the new one'
complete -c storagetm -n "__fish_storagetm_using_subcommand key; and __fish_seen_subcommand_from generate" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c storagetm -n "__fish_storagetm_using_subcommand key; and __fish_seen_subcommand_from import" -l file -d 'Read it from this file, not from standard input' -r -F
complete -c storagetm -n "__fish_storagetm_using_subcommand key; and __fish_seen_subcommand_from import" -l keys -d 'Where keys and hosts are kept' -r -F
complete -c storagetm -n "__fish_storagetm_using_subcommand key; and __fish_seen_subcommand_from import" -l replace -d 'Take the place of a key of that name; hosts that use it are cut off until they have the new one'
complete -c storagetm -n "__fish_storagetm_using_subcommand key; and __fish_seen_subcommand_from import" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c storagetm -n "__fish_storagetm_using_subcommand key; and __fish_seen_subcommand_from export" -l for-host -d 'Write what this host needs, a line a disk, as `nvme tls-key --import` reads it: a host\'s name, or its NQN' -r
complete -c storagetm -n "__fish_storagetm_using_subcommand key; and __fish_seen_subcommand_from export" -l disk -d 'A disk that the host connects to, by its NQN, as `storagetm serve` shows it; may be repeated' -r
complete -c storagetm -n "__fish_storagetm_using_subcommand key; and __fish_seen_subcommand_from export" -l to -d 'Write to this file, which only its owner can read, not to standard output' -r -F
complete -c storagetm -n "__fish_storagetm_using_subcommand key; and __fish_seen_subcommand_from export" -l keys -d 'Where keys and hosts are kept' -r -F
complete -c storagetm -n "__fish_storagetm_using_subcommand key; and __fish_seen_subcommand_from export" -l nbd -d 'Write what NBD clients need, as the PSK files of libnbd, qemu and nbdkit have it: NAME:HEX'
complete -c storagetm -n "__fish_storagetm_using_subcommand key; and __fish_seen_subcommand_from export" -l force -d 'Overwrite the file, if it is there, without asking'
complete -c storagetm -n "__fish_storagetm_using_subcommand key; and __fish_seen_subcommand_from export" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c storagetm -n "__fish_storagetm_using_subcommand key; and __fish_seen_subcommand_from list" -l keys -d 'Where keys and hosts are kept' -r -F
complete -c storagetm -n "__fish_storagetm_using_subcommand key; and __fish_seen_subcommand_from list" -l json -d 'Write a JSON array, one object a key'
complete -c storagetm -n "__fish_storagetm_using_subcommand key; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c storagetm -n "__fish_storagetm_using_subcommand key; and __fish_seen_subcommand_from remove" -l keys -d 'Where keys and hosts are kept' -r -F
complete -c storagetm -n "__fish_storagetm_using_subcommand key; and __fish_seen_subcommand_from remove" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c storagetm -n "__fish_storagetm_using_subcommand key; and __fish_seen_subcommand_from help" -f -a "generate" -d 'Make a new key, and print it or keep it by a name'
complete -c storagetm -n "__fish_storagetm_using_subcommand key; and __fish_seen_subcommand_from help" -f -a "import" -d 'Keep a key that was made elsewhere; its text is read from standard input or a file'
complete -c storagetm -n "__fish_storagetm_using_subcommand key; and __fish_seen_subcommand_from help" -f -a "export" -d 'Write a key in the form in which keys are handed over, or in that which nvme-cli or NBD clients read'
complete -c storagetm -n "__fish_storagetm_using_subcommand key; and __fish_seen_subcommand_from help" -f -a "list" -d 'List the keys that are kept, and which hosts use them; never the keys themselves'
complete -c storagetm -n "__fish_storagetm_using_subcommand key; and __fish_seen_subcommand_from help" -f -a "remove" -d 'Remove a key that no host uses'
complete -c storagetm -n "__fish_storagetm_using_subcommand key; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c storagetm -n "__fish_storagetm_using_subcommand host; and not __fish_seen_subcommand_from add remove list help" -l keys -d 'Where keys and hosts are kept' -r -F
complete -c storagetm -n "__fish_storagetm_using_subcommand host; and not __fish_seen_subcommand_from add remove list help" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c storagetm -n "__fish_storagetm_using_subcommand host; and not __fish_seen_subcommand_from add remove list help" -f -a "add" -d 'Let a host in'
complete -c storagetm -n "__fish_storagetm_using_subcommand host; and not __fish_seen_subcommand_from add remove list help" -f -a "remove" -d 'Let a host in no longer, and cut it off if it is here'
complete -c storagetm -n "__fish_storagetm_using_subcommand host; and not __fish_seen_subcommand_from add remove list help" -f -a "list" -d 'List the hosts that are let in, and what they may have'
complete -c storagetm -n "__fish_storagetm_using_subcommand host; and not __fish_seen_subcommand_from add remove list help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c storagetm -n "__fish_storagetm_using_subcommand host; and __fish_seen_subcommand_from add" -l name -d 'What to call it here; made of the NQN if not given' -r
complete -c storagetm -n "__fish_storagetm_using_subcommand host; and __fish_seen_subcommand_from add" -l tls-key -d 'The key for encrypted connections, by its name; without any key option, one is made' -r
complete -c storagetm -n "__fish_storagetm_using_subcommand host; and __fish_seen_subcommand_from add" -l chap-key -d 'The key by which the host proves who it is (DH-HMAC-CHAP), by its name' -r
complete -c storagetm -n "__fish_storagetm_using_subcommand host; and __fish_seen_subcommand_from add" -l chap-controller-key -d 'The key by which this machine proves to the host who it is (DH-HMAC-CHAP), by its name' -r
complete -c storagetm -n "__fish_storagetm_using_subcommand host; and __fish_seen_subcommand_from add" -l disk -d 'Let it have this disk and no other: a disk\'s name, NQN or serial number; may be repeated, for more than one' -r
complete -c storagetm -n "__fish_storagetm_using_subcommand host; and __fish_seen_subcommand_from add" -l expires -d 'Only for that long, or until then: 30m, 2h, 7d, 4w, 2026-12-01, 2026-12-01T15:00:00Z (UTC)' -r
complete -c storagetm -n "__fish_storagetm_using_subcommand host; and __fish_seen_subcommand_from add" -l keys -d 'Where keys and hosts are kept' -r -F
complete -c storagetm -n "__fish_storagetm_using_subcommand host; and __fish_seen_subcommand_from add" -l writable -d 'Let it change what it may have, as far as that is lent writable'
complete -c storagetm -n "__fish_storagetm_using_subcommand host; and __fish_seen_subcommand_from add" -l tls-compat -d 'Expect what libnvme up to 1.13 makes of a TLS key, where that cannot be told from what later ones make'
complete -c storagetm -n "__fish_storagetm_using_subcommand host; and __fish_seen_subcommand_from add" -l replace -d 'Change what a host that is known may have; it keeps its keys unless others are named'
complete -c storagetm -n "__fish_storagetm_using_subcommand host; and __fish_seen_subcommand_from add" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c storagetm -n "__fish_storagetm_using_subcommand host; and __fish_seen_subcommand_from remove" -l keys -d 'Where keys and hosts are kept' -r -F
complete -c storagetm -n "__fish_storagetm_using_subcommand host; and __fish_seen_subcommand_from remove" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c storagetm -n "__fish_storagetm_using_subcommand host; and __fish_seen_subcommand_from list" -l keys -d 'Where keys and hosts are kept' -r -F
complete -c storagetm -n "__fish_storagetm_using_subcommand host; and __fish_seen_subcommand_from list" -l json -d 'Write a JSON array, one object a host'
complete -c storagetm -n "__fish_storagetm_using_subcommand host; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c storagetm -n "__fish_storagetm_using_subcommand host; and __fish_seen_subcommand_from help" -f -a "add" -d 'Let a host in'
complete -c storagetm -n "__fish_storagetm_using_subcommand host; and __fish_seen_subcommand_from help" -f -a "remove" -d 'Let a host in no longer, and cut it off if it is here'
complete -c storagetm -n "__fish_storagetm_using_subcommand host; and __fish_seen_subcommand_from help" -f -a "list" -d 'List the hosts that are let in, and what they may have'
complete -c storagetm -n "__fish_storagetm_using_subcommand host; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c storagetm -n "__fish_storagetm_using_subcommand pair" -l interface -d 'The interface behind which a link-local address is' -r
complete -c storagetm -n "__fish_storagetm_using_subcommand pair" -l code-file -d 'Read the code from a file, or from standard input if this is -' -r -F
complete -c storagetm -n "__fish_storagetm_using_subcommand pair" -l name -d 'What the other machine is to call this one; its host name if not given' -r
complete -c storagetm -n "__fish_storagetm_using_subcommand pair" -l hostnqn -d 'Be let in under this host NQN; what stands in /etc/nvme/hostnqn if not given' -r
complete -c storagetm -n "__fish_storagetm_using_subcommand pair" -l keys -d 'Where what is known of the other machine is kept' -r -F
complete -c storagetm -n "__fish_storagetm_using_subcommand pair" -l writable -d 'Ask to be allowed to change disks, too'
complete -c storagetm -n "__fish_storagetm_using_subcommand pair" -l json -d 'Write what came of it as a JSON object'
complete -c storagetm -n "__fish_storagetm_using_subcommand pair" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c storagetm -n "__fish_storagetm_using_subcommand find" -l timeout -d 'How long machines may take to answer' -r
complete -c storagetm -n "__fish_storagetm_using_subcommand find" -l keys -d 'Where the keys of machines are kept that have let this one in' -r -F
complete -c storagetm -n "__fish_storagetm_using_subcommand find" -l insecure -d 'Ask machines in the clear that accept none of the keys that this machine has'
complete -c storagetm -n "__fish_storagetm_using_subcommand find" -l json -d 'Write a JSON array, one object a machine'
complete -c storagetm -n "__fish_storagetm_using_subcommand find" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c storagetm -n "__fish_storagetm_using_subcommand attach" -l interface -d 'The interface behind which a link-local address is' -r
complete -c storagetm -n "__fish_storagetm_using_subcommand attach" -l keys -d 'Where the keys of machines are kept that have let this one in' -r -F
complete -c storagetm -n "__fish_storagetm_using_subcommand attach" -l chap-key -d 'Read the secret by which this machine proves itself (DHHC-1:…, DH-HMAC-CHAP) from a file' -r -F
complete -c storagetm -n "__fish_storagetm_using_subcommand attach" -l chap-controller-key -d 'Read the secret by which the other machine must prove itself from a file' -r -F
complete -c storagetm -n "__fish_storagetm_using_subcommand attach" -l hostnqn -d 'Be called so there; what stands in /etc/nvme/hostnqn if not given' -r
complete -c storagetm -n "__fish_storagetm_using_subcommand attach" -l patience -d 'How long the kernel goes on trying when the other machine is away; -1 for ever' -r
complete -c storagetm -n "__fish_storagetm_using_subcommand attach" -l all -d 'All disks that may be had there'
complete -c storagetm -n "__fish_storagetm_using_subcommand attach" -l insecure -d 'Attach in the clear what accepts none of the keys that this machine has'
complete -c storagetm -n "__fish_storagetm_using_subcommand attach" -l digests -d 'Put header and data digests around everything, against faulty networks'
complete -c storagetm -n "__fish_storagetm_using_subcommand attach" -l json -d 'Write what came of it as a JSON array, one object a disk'
complete -c storagetm -n "__fish_storagetm_using_subcommand attach" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c storagetm -n "__fish_storagetm_using_subcommand detach" -l keys -d 'Where the machines are kept that have let this one in' -r -F
complete -c storagetm -n "__fish_storagetm_using_subcommand detach" -l all -d 'All that is attached by NVMe/TCP'
complete -c storagetm -n "__fish_storagetm_using_subcommand detach" -l force -d 'Also disks that are in use'
complete -c storagetm -n "__fish_storagetm_using_subcommand detach" -l json -d 'Write what came of it as a JSON array, one object a connection'
complete -c storagetm -n "__fish_storagetm_using_subcommand detach" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c storagetm -n "__fish_storagetm_using_subcommand hold" -l timeout -d 'Go on by itself after so many seconds' -r
complete -c storagetm -n "__fish_storagetm_using_subcommand hold" -s h -l help -d 'Print help'
complete -c storagetm -n "__fish_storagetm_using_subcommand help; and not __fish_seen_subcommand_from serve copy list boot image key host pair find attach detach hold help" -f -a "serve" -d 'Lend disks until Ctrl-C'
complete -c storagetm -n "__fish_storagetm_using_subcommand help; and not __fish_seen_subcommand_from serve copy list boot image key host pair find attach detach hold help" -f -a "copy" -d 'Copy a disk: from another machine, to one, or on this one'
complete -c storagetm -n "__fish_storagetm_using_subcommand help; and not __fish_seen_subcommand_from serve copy list boot image key host pair find attach detach hold help" -f -a "list" -d 'List the disks of this machine, what is on them, and whether they may be lent'
complete -c storagetm -n "__fish_storagetm_using_subcommand help; and not __fish_seen_subcommand_from serve copy list boot image key host pair find attach detach hold help" -f -a "boot" -d 'Be the first program of a machine that is booted only to lend its disks'
complete -c storagetm -n "__fish_storagetm_using_subcommand help; and not __fish_seen_subcommand_from serve copy list boot image key host pair find attach detach hold help" -f -a "image" -d 'Make something that boots into target mode: an initramfs, an EFI program, or a USB stick'
complete -c storagetm -n "__fish_storagetm_using_subcommand help; and not __fish_seen_subcommand_from serve copy list boot image key host pair find attach detach hold help" -f -a "key" -d 'Make, keep and hand over the keys by which other machines are let in'
complete -c storagetm -n "__fish_storagetm_using_subcommand help; and not __fish_seen_subcommand_from serve copy list boot image key host pair find attach detach hold help" -f -a "host" -d 'Say which machines are let in, to which disks, and until when'
complete -c storagetm -n "__fish_storagetm_using_subcommand help; and not __fish_seen_subcommand_from serve copy list boot image key host pair find attach detach hold help" -f -a "pair" -d 'Be let in by another machine that lends disks, by the code on its screen'
complete -c storagetm -n "__fish_storagetm_using_subcommand help; and not __fish_seen_subcommand_from serve copy list boot image key host pair find attach detach hold help" -f -a "find" -d 'Look for machines that lend disks on the networks that this one is on'
complete -c storagetm -n "__fish_storagetm_using_subcommand help; and not __fish_seen_subcommand_from serve copy list boot image key host pair find attach detach hold help" -f -a "attach" -d 'Have this machine\'s kernel attach disks that another one lends'
complete -c storagetm -n "__fish_storagetm_using_subcommand help; and not __fish_seen_subcommand_from serve copy list boot image key host pair find attach detach hold help" -f -a "detach" -d 'Have this machine\'s kernel let go of disks that were attached'
complete -c storagetm -n "__fish_storagetm_using_subcommand help; and not __fish_seen_subcommand_from serve copy list boot image key host pair find attach detach hold help" -f -a "hold" -d 'Keep what is on the terminal until a key is pressed'
complete -c storagetm -n "__fish_storagetm_using_subcommand help; and not __fish_seen_subcommand_from serve copy list boot image key host pair find attach detach hold help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c storagetm -n "__fish_storagetm_using_subcommand help; and __fish_seen_subcommand_from key" -f -a "generate" -d 'Make a new key, and print it or keep it by a name'
complete -c storagetm -n "__fish_storagetm_using_subcommand help; and __fish_seen_subcommand_from key" -f -a "import" -d 'Keep a key that was made elsewhere; its text is read from standard input or a file'
complete -c storagetm -n "__fish_storagetm_using_subcommand help; and __fish_seen_subcommand_from key" -f -a "export" -d 'Write a key in the form in which keys are handed over, or in that which nvme-cli or NBD clients read'
complete -c storagetm -n "__fish_storagetm_using_subcommand help; and __fish_seen_subcommand_from key" -f -a "list" -d 'List the keys that are kept, and which hosts use them; never the keys themselves'
complete -c storagetm -n "__fish_storagetm_using_subcommand help; and __fish_seen_subcommand_from key" -f -a "remove" -d 'Remove a key that no host uses'
complete -c storagetm -n "__fish_storagetm_using_subcommand help; and __fish_seen_subcommand_from host" -f -a "add" -d 'Let a host in'
complete -c storagetm -n "__fish_storagetm_using_subcommand help; and __fish_seen_subcommand_from host" -f -a "remove" -d 'Let a host in no longer, and cut it off if it is here'
complete -c storagetm -n "__fish_storagetm_using_subcommand help; and __fish_seen_subcommand_from host" -f -a "list" -d 'List the hosts that are let in, and what they may have'
