package main

import (
	"strings"
	"testing"

	"github.com/tidings-go/tidings/driver/redis/redistest"
)

func TestSubscriptions(t *testing.T) {
	for name, open := range map[string]func(t *testing.T) environment{
		"sqlite":   func(t *testing.T) environment { return onSQLite(t).with(environment{"EVENT_DRIVER": "sqlite"}) },
		"postgres": func(t *testing.T) environment { return onPostgres(t).with(environment{"EVENT_DRIVER": "postgres"}) },
		"kafka with postgres": func(t *testing.T) environment {
			return onKafka(t).with(onPostgres(t)).with(environment{"EVENT_CLAIMS": "database"})
		},
		"redis-streams": func(t *testing.T) environment {
			return environment{"EVENT_DRIVER": "redis-streams", "REDIS_URL": redistest.Start(t, "--appendonly", "yes").URL(), "EVENT_CLAIMS": "redis"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := open(t)
			tool(t, e, append([]string{"provision"}, shop...)...).want(t, exitOK)
			tool(t, e, "subscription", "ls").want(t, exitOK, "Nothing is stored under any name.")
			handleOne(t, e, "mail.old")
			tool(t, e, "subscription", "ls").want(t, exitOK, "mail.old  nobody")
			tool(t, e, append([]string{"subscription", "ls"}, shop...)...).want(t, exitOK, "mail.old  nobody")
			tool(t, e, "subscription", "ls", "--subscription", "mail.old=shop.order.placed").want(t, exitOK, "mail.old  declared")
			tool(t, e, append([]string{"doctor"}, shop...)...).want(t, exitFindings, "subscription-unowned", "tidings subscription delete mail.old")

			tool(t, e, "subscription", "delete", "mail.none", "--yes").want(t, exitFailure, "nothing is stored under the name mail.none")
			tool(t, e, "subscription", "delete", "mail.old").want(t, exitOK, "Would be deleted of mail.old", "Nothing was changed")
			tool(t, e, "subscription", "ls").want(t, exitOK, "mail.old")

			tool(t, e, "subscription", "ls", "--json").want(t, exitOK, `"handles":[{`, `"shop.order.placed"`)
			tool(t, e, "subscription", "forget-type", "mail.old", "shop.order.placed").want(t, exitOK, "Would be forgotten: mail.old handles shop.order.placed", "Nothing was changed")
			tool(t, e, "subscription", "forget-type", "mail.old", "shop.order.lost", "--yes").want(t, exitFailure, "no release of mail.old has declared shop.order.lost: it has shop.order.placed")
			tool(t, e, "subscription", "forget-type", "mail.old", "shop.order.placed", "--yes").want(t, exitOK, "Forgotten: mail.old handles shop.order.placed")
			tool(t, e, "subscription", "forget-type", "mail.old", "shop.order.placed", "--yes").want(t, exitFailure, "it has -")
			handleOne(t, e, "mail.old") // it runs again
			tool(t, e, "subscription", "ls").want(t, exitOK, "shop.order.placed")

			startReader(t, e) // mail.confirm
			tool(t, e, "subscription", "ls").want(t, exitOK, "mail.confirm  live")
			tool(t, e, "subscription", "delete", "mail.confirm", "--yes").want(t, exitFailure, "stop them first")

			o := tool(t, e, "subscription", "delete", "mail.old", "--yes").want(t, exitOK, "Deleted of mail.old")
			if strings.Contains(o.out, "mail.confirm") {
				t.Error(o.out)
			}
			eventually(t, "it is there still", func() bool {
				return !strings.Contains(tool(t, e, "subscription", "ls").want(t, exitOK).out, "mail.old")
			})
		})
	}
}
