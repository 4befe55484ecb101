package faults

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
)

var ErrGone = errors.New("Gone.")

func Wrong(name string, ctx context.Context) int {
	unread := 1
	unread = 2
	_ = unread
	os.Remove(name)
	fmt.Printf("%d", name)
	if _, err := os.Stat(name); err == ErrGone {
		return int(1 + len(name))
	}
	os.Remove(name) //nolint:errcheck // it says why
	os.Remove(name) //nolint:errcheck
	if len(strings.Fields(name)) == 0 == true {
		return int(len(name)) // recieved
	}
	return 0
}

func unused() {}

func Asked(db *sql.DB) error {
	response, err := http.Get("http://127.0.0.1")
	if err != nil {
		return fmt.Errorf("asked: %v", err)
	}
	fmt.Println(response.Status)
	rows, err := db.QueryContext(context.Background(), "SELECT 1")
	if err != nil {
		return err
	}
	for rows.Next() {
	}
	for _, word := range []string{"a"} {
		word := word
		fmt.Println(word)
	}
	return nil
}

func Counted() (n int) {
	n = 1
	n = 2
	return n
}
