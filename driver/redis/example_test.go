package redis_test

import (
	"context"
	"fmt"
	"log"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/rueidis"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/redis"
)

func ExampleDriver_Publish() {
	server, err := miniredis.Run() // a server in this process
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	d, err := redis.New(redis.Options{Client: rueidis.ClientOption{InitAddress: []string{server.Addr()}}, Namespace: "shop"})
	if err != nil {
		log.Fatal(err)
	}
	defer d.Close(context.Background())
	fmt.Println(d.BrokerName("identity.user.created"))
	// Nobody listens, and Redis does not say so.
	err = d.Publish(context.Background(), []driver.Message{{Channel: "identity.user.created", Type: "identity.user.created", Body: []byte(`{"userId":"user-1"}`)}})
	fmt.Println("error:", err)
	// Output:
	// shop:identity.user.created
	// error: <nil>
}
