# This machine proves who it is by DH-HMAC-CHAP with ffdhe4096.
chap_with 3 ffdhe4096
