# Both machines prove who they are by DH-HMAC-CHAP with ffdhe3072.
chap_with 2 ffdhe3072 also
