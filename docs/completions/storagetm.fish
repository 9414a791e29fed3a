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

complete -c storagetm -n "__fish_storagetm_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c storagetm -n "__fish_storagetm_needs_command" -s V -l version -d 'Print version'
complete -c storagetm -n "__fish_storagetm_needs_command" -f -a "serve" -d 'Lend disks until Ctrl-C'
complete -c storagetm -n "__fish_storagetm_needs_command" -f -a "list" -d 'List the disks of this machine, what is on them, and whether they may be lent'
complete -c storagetm -n "__fish_storagetm_needs_command" -f -a "boot" -d 'Be the first program of a machine that is booted only to lend its disks'
complete -c storagetm -n "__fish_storagetm_needs_command" -f -a "image" -d 'Make something that boots into target mode: an initramfs, an EFI program, or a USB stick'
complete -c storagetm -n "__fish_storagetm_needs_command" -f -a "hold" -d 'Keep what is on the terminal until a key is pressed'
complete -c storagetm -n "__fish_storagetm_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c storagetm -n "__fish_storagetm_using_subcommand serve" -l demo -d 'Lend a built-in disk held in memory, of 256M or as large as said: 64M, 1G' -r
complete -c storagetm -n "__fish_storagetm_using_subcommand serve" -l writable -d 'Lend DISK so that hosts can change it; may be repeated ("demo" for the built-in disk)' -r -F
complete -c storagetm -n "__fish_storagetm_using_subcommand serve" -l listen -d 'Listen there: 192.168.1.5, 127.0.0.1:4420, [fe80::1%eth0], [::]; may be repeated' -r
complete -c storagetm -n "__fish_storagetm_using_subcommand serve" -l nqn -d 'Name disks BASE.NAME, where NAME is the last part of the path' -r
complete -c storagetm -n "__fish_storagetm_using_subcommand serve" -l io -d 'How to reach the disks and the network: by io_uring, by blocking calls, or the first that works' -r -f -a "auto\t'By io_uring where the kernel allows it'
uring\t'By io_uring, or not at all'
blocking\t'By blocking calls'"
complete -c storagetm -n "__fish_storagetm_using_subcommand serve" -l threads -d 'Threads that serve hosts; as many as there are processors if not given' -r
complete -c storagetm -n "__fish_storagetm_using_subcommand serve" -l all -d 'Lend every disk that is not in use, and follow disks as they come, go and change size'
complete -c storagetm -n "__fish_storagetm_using_subcommand serve" -l open -d 'Allow addresses that are reachable from beyond this machine and the networks it is plugged into'
complete -c storagetm -n "__fish_storagetm_using_subcommand serve" -l allow-in-use -d 'Lend disks read-only even if this machine uses them'
complete -c storagetm -n "__fish_storagetm_using_subcommand serve" -l digests -d 'Put header and data digests into the lines to be typed, against faulty networks'
complete -c storagetm -n "__fish_storagetm_using_subcommand serve" -l boot-settings -d 'Follow also what the machine was booted with: storagetm.disk=, storagetm.writable=, storagetm.listen=, storagetm.open and storagetm.machine_id='
complete -c storagetm -n "__fish_storagetm_using_subcommand serve" -l json -d 'Write what happens as JSON, one event a line, instead of the screen'
complete -c storagetm -n "__fish_storagetm_using_subcommand serve" -s h -l help -d 'Print help (see more with \'--help\')'
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
complete -c storagetm -n "__fish_storagetm_using_subcommand image" -l overwrite -d 'Overwrite a stick even if there is something on it'
complete -c storagetm -n "__fish_storagetm_using_subcommand image" -l json -d 'Write what was made as one JSON line'
complete -c storagetm -n "__fish_storagetm_using_subcommand image" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c storagetm -n "__fish_storagetm_using_subcommand hold" -l timeout -d 'Go on by itself after so many seconds' -r
complete -c storagetm -n "__fish_storagetm_using_subcommand hold" -s h -l help -d 'Print help'
complete -c storagetm -n "__fish_storagetm_using_subcommand help; and not __fish_seen_subcommand_from serve list boot image hold help" -f -a "serve" -d 'Lend disks until Ctrl-C'
complete -c storagetm -n "__fish_storagetm_using_subcommand help; and not __fish_seen_subcommand_from serve list boot image hold help" -f -a "list" -d 'List the disks of this machine, what is on them, and whether they may be lent'
complete -c storagetm -n "__fish_storagetm_using_subcommand help; and not __fish_seen_subcommand_from serve list boot image hold help" -f -a "boot" -d 'Be the first program of a machine that is booted only to lend its disks'
complete -c storagetm -n "__fish_storagetm_using_subcommand help; and not __fish_seen_subcommand_from serve list boot image hold help" -f -a "image" -d 'Make something that boots into target mode: an initramfs, an EFI program, or a USB stick'
complete -c storagetm -n "__fish_storagetm_using_subcommand help; and not __fish_seen_subcommand_from serve list boot image hold help" -f -a "hold" -d 'Keep what is on the terminal until a key is pressed'
complete -c storagetm -n "__fish_storagetm_using_subcommand help; and not __fish_seen_subcommand_from serve list boot image hold help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
