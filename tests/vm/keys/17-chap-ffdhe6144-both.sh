# Both machines prove who they are by DH-HMAC-CHAP with ffdhe6144.
chap_with 4 ffdhe6144 also
