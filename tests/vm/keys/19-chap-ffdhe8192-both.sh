# Both machines prove who they are by DH-HMAC-CHAP with ffdhe8192.
chap_with 5 ffdhe8192 also
