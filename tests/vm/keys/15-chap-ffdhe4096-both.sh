# Both machines prove who they are by DH-HMAC-CHAP with ffdhe4096.
chap_with 3 ffdhe4096 also
