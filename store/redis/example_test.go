package redis_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/rueidis"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/store/redis"
)

func ExampleNewClaims() {
	server, err := miniredis.Run() // a server in this process
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	connection, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{server.Addr()}, DisableCache: true})
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	claims := redis.NewClaims(connection, "shop") // tidings.Options{Claims: claims}
	for _, instance := range []string{"one", "another"} {
		answer, err := claims.Claim(context.Background(), driver.ClaimRequest{Subscription: "billing.create-default-profile", Key: "user-1", Owner: instance, Lease: time.Minute})
		fmt.Println(instance, "may handle it:", err == nil && answer.State == driver.ClaimFresh)
	}
	// Output:
	// one may handle it: true
	// another may handle it: false
}

func ExampleNewDeadLetters() {
	server, err := miniredis.Run()
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	connection, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{server.Addr()}, DisableCache: true})
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	ctx := context.Background()
	letters := redis.NewDeadLetters(connection, "shop") // tidings.Options{DeadLetters: letters}
	letter := driver.DeadLetter{Subscription: "billing.create-default-profile", Type: "identity.user.created", ID: "1", Reason: "permanent", Err: "no such plan", FailedAt: time.Now()}
	if err := letters.PutDeadLetter(ctx, letter); err != nil {
		log.Fatal(err)
	}
	open, err := letters.ListDeadLetters(ctx, driver.DeadLetterFilter{State: driver.DeadLetterOpen}, "", 10)
	if err != nil {
		log.Fatal(err)
	}
	for _, l := range open {
		fmt.Println(l.Subscription, l.Type, l.Reason, l.Err)
	}
	// Output: billing.create-default-profile identity.user.created permanent no such plan
}
