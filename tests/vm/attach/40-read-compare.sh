# Every byte that is read is the byte of the image: in large and in small pieces.
attach "$ro_nqn" "$ro_line"
[ "$(dd if="$dev" bs=1M iflag=direct | sha256sum | cut -d' ' -f1)" = "$ro_sha256" ]
[ "$(dd if="$dev" bs=20k | sha256sum | cut -d' ' -f1)" = "$ro_sha256" ]
