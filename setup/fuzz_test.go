package setup

import (
	"net/url"
	"strings"
	"testing"
)

// A password in a setting, encoded or not, whatever stands around it: no complaint
// repeats it, and no address that is shown has it.
func FuzzSettings(f *testing.F) {
	for _, around := range [][3]string{
		{"", "", "127.0.0.1:1"}, {"#", "", "h"}, {"1/", "", "h"}, {"1?", "", "h"}, {"@", "/", "h"}, {"", ",x", "h:1"}, {" ", "\x00", ""}, {"%", "%zz", "[::1"}, {"'", "\\'", "h/db"},
		{"", "", "h:1/0?addr=x:2"}, {"", "", "h/%2f"},
	} {
		f.Add(around[0], around[1], around[2])
	}
	f.Fuzz(func(t *testing.T, before, after, rest string) {
		const secret = "pl4nted"
		if strings.Contains(strings.ToLower(before+after+rest), secret) {
			return
		}
		raw := before + secret + after
		for _, user := range []string{"app:" + raw, ":" + raw, url.UserPassword("app", raw).String()} {
			checkSetting := func(what, said string) {
				t.Helper()
				if strings.Contains(strings.ToLower(said), secret) {
					t.Fatalf("%s with %q: %s", what, user+"@"+rest, said)
				}
			}
			words := func(errs ...error) (said string) {
				for _, err := range errs {
					if err != nil {
						said += err.Error() + "\n"
					}
				}
				return said
			}
			for _, scheme := range []string{"redis://", "rediss://", "http://", ""} {
				c := Config{Driver: "redis", RedisURL: scheme + user + "@" + rest}
				_, err := redisClient(c, "EVENT_DRIVER is redis")
				checkSetting("REDIS_URL", words(err))
				if err == nil {
					checkSetting("REDIS_URL", redisAddress(c))
				}
			}
			for _, address := range []string{"postgres://" + user + "@" + rest, "mysql://" + user + "@" + rest, "postgres://h/d?password=" + url.QueryEscape(raw), "host=h dbname=d password=" + raw, rest + " password='" + raw + "'"} {
				c := Config{Driver: "in-memory", Claims: inDatabase, DatabaseURL: address}
				made, errs := openDatabase(c, &Options{})
				checkSetting("DATABASE_URL", words(errs...))
				if made.close != nil {
					checkSetting("DATABASE_URL", databaseAddress(c))
					if err := made.close(); err != nil {
						t.Fatal(err)
					}
				}
			}
			_, errs := addresses("KAFKA_BROKERS", user+"@"+rest)
			checkSetting("KAFKA_BROKERS", words(errs...))
			if len(errs) == 0 {
				t.Fatalf("KAFKA_BROKERS takes %q", user+"@"+rest)
			}
			for _, list := range []string{"a.b.c=https://" + user + "@" + rest, "https://" + user + "@" + rest, "a.b.c=" + user + "@" + rest + ",*=https://h/q"} {
				_, err := queueURLs(list)
				checkSetting("SQS_QUEUE_URLS", words(err))
			}
			_, err := amazonConfig(Config{Driver: "sqs", AWSRegion: "eu-central-1", AWSEndpointURL: "https://" + user + "@" + rest})
			checkSetting("AWS_ENDPOINT_URL", words(err))
		}
	})
}
