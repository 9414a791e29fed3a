# Both machines prove who they are by DH-HMAC-CHAP with ffdhe2048.
chap_with 1 ffdhe2048 also
