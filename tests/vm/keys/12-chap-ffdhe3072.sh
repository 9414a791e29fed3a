# This machine proves who it is by DH-HMAC-CHAP with ffdhe3072.
chap_with 2 ffdhe3072
